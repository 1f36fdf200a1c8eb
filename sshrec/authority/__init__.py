"""The authority: certificates, the ledger of them, and the keys that sign. Holds keys; conducts no session."""

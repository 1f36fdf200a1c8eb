"""File transfers as they pass: what is decoded of them, and what a session records and tells of it."""

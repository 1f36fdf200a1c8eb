"""Every OpenSSH program we run, and the files it reads."""

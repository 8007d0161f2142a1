"""Models and engines: which are on disk, which are loaded, and the socket each loaded one sits behind."""

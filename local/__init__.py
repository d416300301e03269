"""The no-Docker runner: the real servers from packages, Bronze's roles on them, and proof that it all works.

In the order in which things happen: `builds` gets the servers that come as source or jar, `programs` says what a
program is and starts one, `servers` declares each server, `stack` joins them with the roles, `supervision` runs the
stack in the background, `evidence` follows the sample through it. `__main__` has the commands that `make` calls.
"""

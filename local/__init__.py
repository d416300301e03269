"""The no-Docker runner: the real servers from packages, Bronze's roles on them, and proof that it all works.

In the order in which things happen: `builds` gets the servers that come as source or jar, `settings` are what a person
sets, `exporters` says where telemetry goes, `programs` says what a program is and starts one, `servers` declares each
server, `stack` joins them with the roles, `checks` has them look at their configurations, `supervision` runs the stack
in the background, `queues` says what telemetry was left behind, `evidence` follows the sample through it all.
`__main__` has the commands that `make` calls.
"""

"""The runner without Docker: the real servers from packages, Bronze's roles, and evidence that the system works.

In the order of use: `builds` gets the servers that come as source or jar, `settings` reads the user's settings,
`secret_files` makes secrets, `exporters` chooses the destinations of telemetry, `programs` defines and starts a
program, `servers` declares each server, `stack` combines them with the roles, `checks` validates the configurations,
`supervision` runs the stack in the background, `queues` finds unsent telemetry, `evidence` follows the sample through
the system. `components` lists what all of it is made of, `audit` looks up its vulnerabilities, `images` pins images
by digest. `__main__` has the commands that `make` calls.
"""

"""The composition root: the only folder that creates the parts of the roles and connects them.

servers    connections to the servers that roles and commands use, and what several of them make
api        the API
consumer   the consumer
canary     the canary and its checks
reload     takes an edited file of sources
commands   the commands that need a server
"""

"""The composition root: the only folder that creates the parts of the roles and connects them.

servers       connections to queue and bucket, which roles and commands use, and what several of them make
http_servers  clients of Prometheus, the trace store and the issuer of tokens
api           the API
consumer      the consumer
canary        the canary and its checks
table         the committer of tables
notify        the events for others
workers       several processes of a role
listener      the socket of the API
reload        takes an edited file of sources
retention     `bronze retain`, and the tables that it waits for
erasure       `bronze erase`
commands      the commands that need a server
"""

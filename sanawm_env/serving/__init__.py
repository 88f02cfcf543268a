"""One world, many workers: a server that holds one `Simulator` and the episodes of its clients, and environments that
are clients of it.

An episode is a value, so a client holds the number of one (a handle), and a step takes handles and gives handles:
restoring and forking send nothing, a saved past costs the server what it would cost here, and a step that is asked for
twice is not taken twice. `wire` is what travels, `service` what is answered, `worker` steps all clients in one batch,
`app` and `server` put it on a port; `connection` and `remote` are the client's side. Ids are registered without any of
this, so this file imports nothing.
"""

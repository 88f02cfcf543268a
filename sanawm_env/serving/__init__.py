"""A server that holds one world and steps it for many clients, and environments that are its clients.

An episode is a value, so a client holds only the number (handle) of an episode on the server. A step takes handles and
returns handles. Restoring and forking send nothing, and a request that is sent twice is done once.

`wire` is the message format, `protocol` the requests, `service` answers them, `worker` steps all clients in one batch,
`app` and `server` put the service on a port; `connection` and `remote` are the client's side. This file imports
nothing, so that environment ids can be registered without these modules.
"""

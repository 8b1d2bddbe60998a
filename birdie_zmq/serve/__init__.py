"""An OpenAI-compatible HTTP server: a client of a broker, or of an embedded broker and worker.

Needs the packages of ``birdie-zmq[serve]``. `app` routes requests, `completion_request` and `chat_request` read them,
`dispatcher` collects what waits into batches for the worker, and `completion_response` and `chat_response` shape the
answers. `connection_limits`, `bodies`, `admission` and `access` bound what a client can take.
"""

"""``EngineApi`` over the pool's Unix socket: one JSON object per line, both ways.

A request is ``{"id": N, "method": NAME, "params": {...}}``, its answer ``{"id": N, "result": ...}`` or
``{"id": N, "error": {"type", "message", "fields"}}``. Requests of one connection run concurrently; answers come as
they are ready. Client and server are driven by the type hints of ``engine.api.EngineApi`` (``methods.py``), so that
a method is added in the protocol and in ``LocalApi`` only. Whoever may open the socket (mode 0600) may do everything.
"""

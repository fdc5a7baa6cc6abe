"""An OpenAI-compatible server over the controller: judged before it is sent, closed by default.

``app.Server`` makes the ASGI application, ``serve`` runs it. Needs the extra ``server``.
"""

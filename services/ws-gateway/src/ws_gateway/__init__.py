"""The edge for people, browsers and HTTP clients: REST, WebSocket, server-sent events and the page.

It holds no business of its own. A request is authenticated, becomes a gRPC call in the caller's name, and its answer
goes back in one format; what happens in the system is followed by offset, so that a broken connection loses nothing.
"""

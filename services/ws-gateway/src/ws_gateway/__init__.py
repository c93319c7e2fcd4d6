"""The edge for people, browsers and HTTP clients: WebSocket, REST and the page."""

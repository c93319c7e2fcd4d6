"""The core of the WebSocket edge without sockets: messages, channels, recovery and the policy for slow consumers."""

//! Remote command and port-forward protocols: WebSocket v4 and v5, SPDY/3.1 frames, client and server side.

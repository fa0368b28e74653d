//! The node agent: Pod workers, ID ranges, volumes, status, its HTTPS server.

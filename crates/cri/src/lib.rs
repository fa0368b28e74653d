//! CRI v1: the public interface's messages and services, generated code committed, client and server transports.

//! The Kubernetes API over HTTP: discovery, authentication, authorisation, admission, watch, subresources.

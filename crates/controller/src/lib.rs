//! Controllers that the API needs: namespaces, service accounts, the root CA's ConfigMap, Pod collection.

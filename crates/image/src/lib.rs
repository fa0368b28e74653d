//! OCI images: registries, mirrors, authentication, import, verification, unpacking, layers, collection.

//! The runtime handler that a Pod's `RuntimeClass` names.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;

use super::Worker;

/// Why the handler is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandlerError {
    #[error(
        "failed to get sandbox runtime: RuntimeClass {0:?} not found; create it, or take runtimeClassName from the Pod"
    )]
    NoClass(String),
    #[error("failed to get sandbox runtime: read RuntimeClass {name:?}: {source}")]
    Api { name: String, source: kube::Error },
}

impl Worker {
    /// The handler of the Pod's `RuntimeClass`; empty for the runtime's default. Asked of the API once: a class keeps
    /// its handler.
    pub(super) async fn runtime_handler(&mut self, pod: &Pod) -> Result<String, HandlerError> {
        let name = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()).unwrap_or_default();
        if name.is_empty() {
            return Ok(String::new());
        }
        if let Some(known) = &self.handler {
            return Ok(known.clone());
        }
        let api: Api<RuntimeClass> = Api::all(self.shared.client.clone());
        let found = api.get_opt(name).await;
        let found = found.map_err(|source| HandlerError::Api { name: name.to_owned(), source })?;
        let class = found.ok_or_else(|| HandlerError::NoClass(name.to_owned()))?;
        self.handler = Some(class.handler.clone());
        Ok(class.handler)
    }
}

//! The API server alone, for trying things by hand: `cargo run -p apiserver --example serve -- DIRECTORY [PORT]`.

use std::error::Error;
use std::path::PathBuf;

use apiserver::ApiServerConfig;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("which directory?")?);
    let port = arguments.next().unwrap_or_else(|| "6443".to_owned());
    let shutdown = CancellationToken::new();
    let config = ApiServerConfig {
        secure_listen: format!("127.0.0.1:{port}").parse()?,
        advertise: vec!["127.0.0.1".parse()?],
        names: Vec::new(),
        service_ip: "10.96.0.1".parse()?,
        feature_gates: api::feature::Gates::default(),
        userns_policy: userns::policy::Policy::OptIn,
        ids_per_pod: 65_536,
        admin_kubeconfig: directory.join("admin.kubeconfig"),
        access: apiserver::AccessConfig::default(),
        state_dir: directory,
    };
    let server = apiserver::start(config, shutdown.clone()).await?;
    tokio::signal::ctrl_c().await?;
    shutdown.cancel();
    server.join().await;
    Ok(())
}

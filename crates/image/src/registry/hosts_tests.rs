use super::*;

fn hosts(registry: &str, file: Option<&str>) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().unwrap();
    if let Some(text) = file {
        let host = dir.path().join(registry);
        std::fs::create_dir_all(&host).unwrap();
        std::fs::write(host.join("hosts.toml"), text).unwrap();
    }
    let reference: Reference = format!("{registry}/a/b").parse().unwrap();
    let described = |host: Host| {
        let may = match (host.can_resolve, host.can_pull) {
            (true, true) => "",
            (true, false) => " resolve",
            (false, true) => " pull",
            (false, false) => " nothing",
        };
        match host.place {
            Place::Layouts(path) => format!("oci:{}{may}", path.display()),
            Place::Registry(e) => {
                let ns = e.mirrored.as_ref().map(|ns| format!(" ns={ns}")).unwrap_or_default();
                format!("{}{}{ns}{may}", e.origin(), e.path)
            }
        }
    };
    let hosts = hosts_of(dir.path(), &reference).map_err(|error| error.to_string())?;
    Ok(hosts.into_iter().map(described).collect())
}

#[test]
fn without_a_file_the_registry_itself_is_asked() {
    assert_eq!(hosts("docker.io", None).unwrap(), ["https://registry-1.docker.io/v2"]);
    assert_eq!(hosts("registry.k8s.io", None).unwrap(), ["https://registry.k8s.io/v2"]);
    assert_eq!(
        hosts("127.0.0.1:5000", None).unwrap(),
        ["http://127.0.0.1:5000/v2", "https://127.0.0.1:5000/v2"]
    );
    assert_eq!(hosts("localhost:443", None).unwrap(), ["https://localhost:443/v2"]);
    assert_eq!(hosts("localhost.example", None).unwrap(), ["https://localhost.example/v2"]);
}

#[test]
fn mirrors_are_asked_in_the_order_of_the_file_and_the_server_last() {
    let text = r#"
        server = "https://docker.io"
        [host."https://z.example/prefix"]
          capabilities = ["pull"]
        [host."http://a.example:5000"]
          capabilities = ["resolve"]
        [host."https://b.example/custom"]
          override_path = true
        [host."oci:/srv/images"]
        [host."c.example/v2"]
          capabilities = ["push"]
    "#;
    assert_eq!(
        hosts("docker.io", Some(text)).unwrap(),
        [
            "https://z.example/prefix/v2 ns=docker.io pull",
            "http://a.example:5000/v2 ns=docker.io resolve",
            "https://b.example/custom ns=docker.io",
            "oci:/srv/images",
            "https://c.example/v2 ns=docker.io nothing",
            "https://registry-1.docker.io/v2",
        ]
    );
}

#[test]
fn a_directory_of_layouts_can_be_the_only_place() {
    assert_eq!(hosts("docker.io", Some("server = \"oci:///srv/x\"")).unwrap(), ["oci:/srv/x"]);
    let error = hosts("docker.io", Some("server = \"oci:srv\"")).unwrap_err();
    assert!(error.contains("`oci:srv` is not a host"), "{error}");
}

#[test]
fn what_is_wrong_in_the_file_is_said_with_its_path() {
    for (text, reason) in [
        ("server = 3", "is not a valid hosts.toml"),
        ("[host.\"ftp://x\"]", "`ftp://x` is not a host"),
        ("[host.\"https://u:p@x\"]", "is not a host"),
        ("[host.\"https://x\"]\nskip_verify = \"yes\"", "host `https://x`"),
        ("server = ", "is not a valid hosts.toml"),
    ] {
        let error = hosts("docker.io", Some(text)).unwrap_err();
        assert!(error.contains(reason) && error.contains("docker.io/hosts.toml"), "{text}: {error}");
    }
}

#[test]
fn tls_files_are_found_beside_the_file_and_headers_kept() {
    let text = r#"
        [host."https://x"]
        ca = ["one.crt", "/abs/two.crt"]
        client = [["client.cert", "client.key"]]
        skip_verify = true
        [host."https://x".header]
        x-team = ["a", "b"]
    "#;
    let parsed = parse(text, Path::new("/certs/docker.io/hosts.toml"), "docker.io").unwrap();
    let Place::Registry(endpoint) = &parsed[0].place else { panic!("a registry") };
    let expected = TlsFiles {
        ca: vec!["/certs/docker.io/one.crt".into(), "/abs/two.crt".into()],
        client: Some(("/certs/docker.io/client.cert".into(), Some("/certs/docker.io/client.key".into()))),
        skip_verify: true,
    };
    assert_eq!(endpoint.tls, expected);
    assert_eq!(
        endpoint.headers,
        [("x-team".to_owned(), "a".to_owned()), ("x-team".to_owned(), "b".to_owned())]
    );
}

#[test]
fn ports_may_be_written_with_underscores_and_defaults_catch_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, server: &str| {
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("hosts.toml"), format!("server = \"{server}\"")).unwrap();
    };
    write("reg.example_5000_", "https://underscored");
    write("_default", "https://default");
    let first = |reference: &str| {
        let hosts = hosts_of(dir.path(), &reference.parse().unwrap()).unwrap();
        let Place::Registry(endpoint) = &hosts[0].place else { panic!("a registry") };
        endpoint.origin()
    };
    assert_eq!(first("reg.example:5000/a"), "https://underscored");
    assert_eq!(first("other.example/a"), "https://default");
}

#[test]
fn dockers_older_layout_gives_authorities_and_a_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join("reg.example");
    std::fs::create_dir_all(&host).unwrap();
    for name in ["ca.crt", "client.cert", "client.key"] {
        std::fs::write(host.join(name), "").unwrap();
    }
    let hosts = hosts_of(dir.path(), &"reg.example/a".parse().unwrap()).unwrap();
    let Place::Registry(endpoint) = &hosts[0].place else { panic!("a registry") };
    assert_eq!(endpoint.tls.ca, [host.join("ca.crt")]);
    assert_eq!(endpoint.tls.client, Some((host.join("client.cert"), Some(host.join("client.key")))));
}

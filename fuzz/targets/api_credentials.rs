//! Who a request says that it comes from: `Authorization` and `Impersonate-*` headers, tokens of all kinds, lines of the
//! token file, certificates and certificate requests. Nobody gets in with a token that the server has not signed.
//!
//! The first line says what the rest is: `header`, `claims`, `line`, `impersonate`, `certificate` or `request`.

#![no_main]

use fuzz::object::split_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((what, rest)) = split_line(bytes) else { return };
    match what {
        b"claims" => apiserver::fuzz::claims(rest),
        b"certificate" => apiserver::fuzz::certificate(rest),
        b"request" => apiserver::fuzz::certificate_request(rest),
        b"impersonate" => apiserver::fuzz::impersonation(rest),
        b"line" => std::str::from_utf8(rest).into_iter().for_each(apiserver::fuzz::token_line),
        _ => apiserver::fuzz::authorization(rest),
    }
});

//! Stop signals: CRI's enum, an image's `StopSignal`, and the numbers of Linux.

use cri::v1::Signal;

/// SIGTERM, sent when neither the Pod nor the image names another.
pub(crate) const DEFAULT_STOP: i32 = 15;

/// SIGKILL.
pub(crate) const KILL: i32 = 9;

/// The first and last real-time signal as glibc counts them (two are its own).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

const NUMBERS: [(&str, i32); 34] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];

/// The signal that asks a container to end: the request's, else the image's, else SIGTERM.
pub(crate) fn stop_signal(request: i32, image: Option<&str>) -> i32 {
    let asked = Signal::try_from(request).ok().filter(|signal| *signal != Signal::RuntimeDefault);
    asked
        .and_then(|signal| parse(signal.as_str_name()))
        .or_else(|| image.and_then(parse))
        .unwrap_or(DEFAULT_STOP)
}

/// The enum value to report for a signal number.
pub(crate) fn to_cri(number: i32) -> Signal {
    let plain = NUMBERS.iter().find(|(_, known)| *known == number).map(|(name, _)| format!("SIG{name}"));
    let name = plain.unwrap_or_else(|| match number {
        RTMIN => "SIGRTMIN".to_owned(),
        RTMAX => "SIGRTMAX".to_owned(),
        low if (RTMIN..=RTMIN + 15).contains(&low) => format!("SIGRTMINPLUS{}", low - RTMIN),
        high => format!("SIGRTMAXMINUS{}", RTMAX - high),
    });
    Signal::from_str_name(&name).unwrap_or(Signal::RuntimeDefault)
}

/// A number, or a name with or without `SIG`; real-time signals as `RTMIN+1` (images) or `RTMINPLUS1` (CRI).
pub(crate) fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let plain = NUMBERS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    plain.or_else(|| real_time(name))
}

fn real_time(name: &str) -> Option<i32> {
    let offset = |text: &str, separators: [&str; 2]| {
        let digits = separators.iter().find_map(|separator| text.strip_prefix(separator));
        if text.is_empty() {
            Some(0)
        } else {
            digits?.parse::<i32>().ok().filter(|offset| *offset <= RTMAX - RTMIN)
        }
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, ["+", "PLUS"]).map(|offset| RTMIN + offset);
    }
    offset(name.strip_prefix("RTMAX")?, ["-", "MINUS"]).map(|offset| RTMAX - offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_wins_over_the_image_over_sigterm() {
        assert_eq!(stop_signal(Signal::Sigusr1.into(), Some("SIGQUIT")), 10);
        assert_eq!(stop_signal(0, Some("SIGQUIT")), 3);
        assert_eq!(stop_signal(0, Some("3")), 3);
        assert_eq!(stop_signal(0, Some("nonsense")), 15);
        assert_eq!(stop_signal(0, None), 15);
    }

    #[test]
    fn every_cri_signal_has_a_number_that_leads_back_to_it() {
        for value in 1..=65 {
            let signal = Signal::try_from(value).unwrap();
            let number = parse(signal.as_str_name()).unwrap_or_else(|| panic!("{signal:?}"));
            let back = parse(to_cri(number).as_str_name());
            assert_eq!(back, Some(number), "{signal:?} is {number}");
        }
    }

    #[test]
    fn real_time_signals_are_taken_in_both_spellings() {
        assert_eq!(parse("SIGRTMIN+3"), Some(37));
        assert_eq!(parse("RTMINPLUS3"), Some(37));
        assert_eq!(parse("SIGRTMAX-1"), Some(63));
        assert_eq!(parse("SIGRTMIN+99"), None);
        assert_eq!(parse("0"), None);
    }
}

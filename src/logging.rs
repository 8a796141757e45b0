//! The subscriber of `tracing`: everything that is logged beside the journal goes to standard error, in the form
//! that `[log]` asks for. The one global of the program (docs/LOGGING.md).

use std::io::Write;

use tracing::Subscriber;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::node::{Log, LogFormat};

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `log.level` is no level and no filter.
    #[error(
        "log.level: {0}; expected error, warn, info, debug, trace or a filter such as info,gatepost::directory=debug"
    )]
    Level(#[from] ParseError),
    /// `log.level` would show passwords.
    #[error(
        "log.level: ldap3 logs whole messages below warn, passwords among them; expected off, error or warn"
    )]
    Secrets,
    /// A subscriber is there already.
    #[error("logging was started twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    /// The subscriber is gone.
    #[error("log.level cannot be changed: {0}")]
    Gone(#[from] reload::Error),
}

/// What other crates log is their own affair, and noisy: ldap3 reports each lost connection as an error and prints
/// whole messages below `debug`; sqlx prints statements. A filter that names such a crate in `log.level` wins.
const QUIET: [&str; 6] =
    ["ldap3=off", "sqlx=warn", "hyper=warn", "rustls=warn", "h2=warn", "mio=warn"];

/// Starts logging for the whole program, records of the `log` crate included.
///
/// # Errors
/// [`LoggingError`]; nothing was started.
pub fn start(log: &Log) -> Result<Logging, LoggingError> {
    let (subscriber, logging) = subscriber(log, std::io::stderr)?;
    subscriber.try_init()?;
    Ok(logging)
}

/// The running log; its level can be changed.
pub struct Logging {
    swap: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

impl Logging {
    /// Takes the level of a new configuration; its format takes effect at the next start.
    ///
    /// # Errors
    /// [`LoggingError::Level`]; the level is as it was.
    pub fn change(&self, log: &Log) -> Result<(), LoggingError> {
        Ok((self.swap)(filter(&log.level)?)?)
    }
}

/// Whether `log.level` can be read.
///
/// # Errors
/// [`LoggingError::Level`]
pub fn check(log: &Log) -> Result<(), LoggingError> {
    filter(&log.level).map(drop)
}

fn filter(level: &str) -> Result<EnvFilter, LoggingError> {
    let quiet = QUIET.iter().filter(|directive| {
        let name = directive.split('=').next().unwrap_or_default();
        !level.split(',').any(|given| given.trim().starts_with(name))
    });
    // ldap3 prints whole messages below warn: passwords would stand in the log.
    if level.split(',').any(|given| {
        let (crate_name, wanted) = given.trim().split_once('=').unwrap_or((given.trim(), "trace"));
        crate_name.starts_with("ldap3") && !["off", "error", "warn"].contains(&wanted)
    }) {
        return Err(LoggingError::Secrets);
    }
    let directives: Vec<&str> = quiet.copied().chain([level]).collect();
    Ok(EnvFilter::builder().parse(directives.join(","))?)
}

type Boxed = Box<dyn Subscriber + Send + Sync>;

fn subscriber<W>(log: &Log, writer: W) -> Result<(Boxed, Logging), LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    for<'a> <W as MakeWriter<'a>>::Writer: Write,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&log.level)?)
        .with_writer(writer)
        .with_target(true)
        .with_ansi(false);
    Ok(match log.format {
        LogFormat::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let swap = Box::new(move |filter| handle.reload(filter));
            (Box::new(builder.finish()), Logging { swap })
        }
        LogFormat::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            let swap = Box::new(move |filter| handle.reload(filter));
            (Box::new(builder.finish()), Logging { swap })
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Capture(Arc<Mutex<Vec<u8>>>);

    impl Write for Capture {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: LogFormat) -> String {
        let log = Log { level: level.into(), format };
        let capture = Capture::default();
        let writer = capture.clone();
        let (subscriber, _) = subscriber(&log, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "gatepost::server", door = "dovecot", "a door is open");
            tracing::debug!(target: "gatepost::directory", "why");
            tracing::error!(target: "ldap3::conn", "noise");
        });
        let bytes = capture.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_level_decides_and_ldap3_is_quiet() {
        let text = logged("info", LogFormat::Text);

        assert!(text.contains("a door is open door=\"dovecot\""), "{text}");
        assert!(!text.contains("why") && !text.contains("noise"), "{text}");
    }

    #[test]
    fn a_filter_may_name_a_part_or_a_noisy_crate() {
        let text = logged("warn,gatepost::directory=debug,ldap3=error", LogFormat::Text);

        assert!(!text.contains("a door is open"), "{text}");
        assert!(text.contains("why") && text.contains("noise"), "{text}");
    }

    #[test]
    fn a_changed_level_takes_effect_at_once() {
        let mut log = Log { level: "warn".into(), format: LogFormat::Text };
        let capture = Capture::default();
        let writer = capture.clone();
        let (subscriber, logging) = subscriber(&log, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("before");
            log.level = "info".into();
            logging.change(&log).unwrap();
            tracing::info!("after");
            log.level = "no level=at all".into();
            assert!(logging.change(&log).is_err());
        });

        let text = String::from_utf8(capture.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("after") && !text.contains("before"), "{text}");
    }

    #[test]
    fn a_filter_that_would_log_passwords_is_refused() {
        for level in ["ldap3=trace", "info,ldap3::conn=debug", "ldap3"] {
            let log = Log { level: level.into(), format: LogFormat::Text };
            assert!(matches!(check(&log), Err(LoggingError::Secrets)), "{level}");
        }
    }

    #[test]
    fn json_is_one_object_a_line() {
        let line = logged("info", LogFormat::Json);

        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "INFO");
        assert_eq!(value["fields"]["door"], "dovecot");
    }

    #[test]
    fn a_level_that_is_none_is_refused() {
        let log = Log { level: "gatepost=loud".into(), format: LogFormat::Text };

        assert!(matches!(check(&log), Err(LoggingError::Level(_))));
    }
}

//! The core as a whole, without a directory.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::memory::{Learned, Seen};
use super::*;
use crate::config::directory::{Directory, Search};
use crate::metrics::DoorName;
use crate::secret::Password;

impl Authenticator {
    /// One that remembers nobody, over this store, for tests of other layers too. Its metrics are its own.
    pub(crate) fn over(store: Store, config: &Config) -> Arc<Self> {
        let metrics = Metrics::new();
        let directories = Directories::build(&config.directory, None, &metrics).unwrap();
        let parts = Parts {
            store,
            journal: Arc::new(Journal::stderr(config.log.format, metrics.clone()).unwrap()),
            metrics,
            throttle: Arc::new(Throttle::new(&config.throttle, [7; 32], clock::now())),
            tracker: TaskTracker::new(),
            memory_capacity: 1 << 20,
            memory_key: [7; 32],
        };
        Arc::new(Self::new(Setup::new(config, Arc::new(directories), 1), parts))
    }

    /// One with an empty store and no directory.
    pub(crate) async fn alone(directory: &tempfile::TempDir) -> Arc<Self> {
        let mut config = Config::default();
        config.domain.insert("example.org".into(), Default::default());
        Self::configured(config, directory).await
    }

    /// One with an empty store.
    async fn configured(mut config: Config, directory: &tempfile::TempDir) -> Arc<Self> {
        config.store.url = format!("sqlite://{}", directory.path().join("gatepost.db").display());
        Self::over(Store::open(&config.store).await.unwrap(), &config)
    }

    /// Somebody whose password is "secret".
    pub(crate) fn remember(&self, name: &str) {
        let (person, now) = (Arc::new(Person::local(1)), clock::now());
        let versions = Versions { rules: self.setup().generation, profile: 0 };
        let learned = Learned { name, person: &person, versions, vouched: None, now };
        let mailbox = Arc::new(Mailbox::sample(name));
        let seen = Seen { mailbox, edition: self.memory.edition(), written: true, at: now };
        self.memory.prove(&learned, &Password::new("secret"), seen, None);
    }

    /// All places for names that memory does not know; they are free again when this is dropped.
    pub(crate) fn take_places(&self) -> Vec<impl Sized + use<>> {
        let places = self.setup().places();
        std::iter::from_fn(|| self.admission.enter(Standing::Stranger, places)).collect()
    }
}

fn attempt(login: &str) -> Attempt {
    Attempt {
        login: login.into(),
        authzid: Vec::new(),
        password: Password::new("secret"),
        service: Some(Service::Imap),
        service_name: "imap".into(),
        client: None,
        peer: None,
        session: None,
        door: DoorName::new("test".into()),
        arrived: clock::now(),
    }
}

#[tokio::test]
async fn remembered_mailboxes_share_the_name_of_their_domain() {
    let directory = tempfile::tempdir().unwrap();
    let core = Authenticator::alone(&directory).await;

    let [fry, leela] = ["fry@example.org", "leela@example.org"]
        .map(|address| core.setup().effective(Mailbox::sample(address)));

    let text = |mailbox: &Mailbox| mailbox.address.domain().as_str().as_ptr();
    assert_eq!(text(&fry), text(&leela));
}

/// What memory says at once, in a word; nothing: a question is made of it.
fn at_once(core: &Arc<Authenticator>, login: &str) -> Option<&'static str> {
    core.recall(&attempt(login), clock::now()).map(|verdict| match verdict {
        Verdict::Accept(_) => "accept",
        Verdict::Reject(_) => "refuse",
        Verdict::Unavailable(later) => later.reason.as_str(),
    })
}

#[tokio::test]
async fn strangers_have_the_places_that_directories_with_logins_have_room_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    let people = Search { base: "dc=example,dc=org".into(), ..Search::default() };
    let mut corp = Directory {
        hosts: vec!["127.0.0.1".into()],
        anonymous: true,
        search: [("people".to_owned(), people)].into(),
        queue: 3000,
        ..Directory::default()
    };
    config.directory.insert("corp".into(), corp.clone());
    corp.auth.enabled = false;
    config.directory.insert("only-sync".into(), corp);
    let core = Authenticator::configured(config, &directory).await;

    assert_eq!(core.take_places().len(), 3032);
}

#[tokio::test]
async fn a_crowd_without_a_place_hears_later_at_once_unless_memory_knows_or_the_same_is_being_asked()
 {
    let directory = tempfile::tempdir().unwrap();
    let core = Authenticator::alone(&directory).await;
    core.remember("fry@example.org");
    let crowd = core.take_places();

    assert_eq!(at_once(&core, "leela@example.org"), Some("busy"));
    assert_eq!(at_once(&core, "fry@example.org"), Some("accept"));
    let digest = core.memory.digest("leela@example.org", &Password::new("secret"));
    let (_outcome, lead) = core.flights.join("leela@example.org", digest, core.setup().generation);
    assert_eq!(at_once(&core, "leela@example.org"), None);

    drop((crowd, lead));

    assert_eq!(at_once(&core, "leela@example.org"), None);
}

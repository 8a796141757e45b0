//! Opens the doors of the configuration and serves what is handed over.

use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;

use super::activation::{CONTROL, Passed};
use super::checkpassword;
use super::control;
use super::door::{Door, Shared};
use super::dovecot::{self, AuthDoor};
use super::dovecot_dict::{self, DictDoor};
use super::dovecot_master::{self, MasterDoor, Reader};
use super::handover::{self, HandOver, HandedSocket, Peers};
use super::http::{self, HttpDoor, ShieldChange};
use super::listener::{self, BindError, Connection, Limits, Peer, Socket, Stream, accept_loop};
use super::lists::ListBook;
use super::postfix::maps::{self, MapsDoor};
use super::postfix::policy::{self, PolicyDoor};
use super::proxied::Proxies;
use super::saslauthd;
use super::tls::Certificates;
use super::{Daemon, StartError};
use crate::clock;
use crate::config::Config;
use crate::config::listen::{Listen, Protocol};
use crate::config::units::FileMode;
use crate::identity::Login;
use crate::proto::dovecot::auth::SocketKind;
use crate::proto::dovecot::dict::PasswordKey;
use crate::proto::dovecot::master::MasterKind;
use crate::proto::handover::{HandedKind, Place};
use crate::throttle::{Full, Subject};

/// Command lines that talk to the daemon at one time.
const CONTROL_CONNECTIONS: usize = 32;

/// A connection that is being served.
type Boxed<'a> = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send + 'a>>;

/// What is spoken on a socket.
enum Speaks {
    Auth(Arc<AuthDoor>, SocketKind),
    Master(Arc<MasterDoor>, MasterKind, Openness),
    Checkpassword(Arc<Door>),
    Dict(Arc<DictDoor>),
    Http(Arc<HttpDoor>, Option<Arc<Certificates>>),
    Maps(Arc<MapsDoor>),
    Policy(Arc<PolicyDoor>),
    HandOver(Peers, Arc<Listen>),
    Saslauthd(Arc<Door>),
    /// The command line's requests.
    Control,
    /// Tokens of URLAUTH: not offered, and closed at once.
    Nothing,
}

/// Who may open a socket of the userdb.
#[derive(Clone, Debug)]
enum Openness {
    /// Those whom its mode lets in: they may ask for anybody.
    Some,
    /// Everybody; only these users may ask for anybody.
    All(Vec<u32>),
}

fn own_uid() -> Vec<u32> {
    vec![rustix::process::geteuid().as_raw()]
}

/// Dovecot makes auth-userdb with mode 0666. Where the path cannot be seen (a chroot, a container) it is taken for one.
fn openness(place: &Place, listen: &Listen) -> Openness {
    let Place::Unix(path) = place else { return Openness::Some };
    let mut readers = own_uid();
    readers.extend(listen.peers.iter().filter_map(|peer| handover::user_id(peer)));
    match std::fs::metadata(path) {
        Ok(file) if file.mode() & 0o002 == 0 => Openness::Some,
        Ok(file) => {
            readers.push(file.uid());
            Openness::All(readers)
        }
        Err(_) => Openness::All(readers),
    }
}

/// What a dovecot-master door of our own speaks: whoever could open a socket of everybody's could claim the logins of
/// others, if they learned a cookie, and a TCP peer's process cannot be compared with the one that claims.
fn who_may_claim(listen: &Listen) -> (MasterKind, Openness) {
    if listen.mode.0 & 0o002 != 0 && listen.path.is_some() {
        return (MasterKind::Userdb, Openness::All(own_uid()));
    }
    let kind = if listen.path.is_some() { MasterKind::Master } else { MasterKind::Userdb };
    (kind, Openness::Some)
}

fn reader(peer: Peer, openness: &Openness) -> Reader {
    // The kernel gives 0 for a process that lives in a pid namespace we cannot see.
    let pid = peer.credentials.and_then(|peer| peer.pid).and_then(|pid| u32::try_from(pid).ok());
    let uid = peer.credentials.map(|peer| peer.uid);
    let only_uid = match (openness, uid) {
        (Openness::All(readers), Some(uid)) if uid != 0 && !readers.contains(&uid) => Some(uid),
        _ => None,
    };
    Reader { pid: pid.filter(|pid| *pid != 0), only_uid }
}

/// A door with the sockets it listens on.
pub(super) struct Opened {
    name: Arc<str>,
    purpose: Purpose,
    listen: Listen,
    sockets: Vec<Socket>,
}

enum Purpose {
    Control,
    Door,
}

/// Opens the control socket and every door; those that systemd passed are open already.
///
/// # Errors
/// If one cannot be opened; all are closed again then.
pub(super) fn open(config: &Config, mut passed: Passed) -> Result<Vec<Opened>, StartError> {
    let control = Listen {
        path: Some(config.node.control.clone()),
        mode: FileMode(0o600),
        max_connections: CONTROL_CONNECTIONS,
        ..Listen::default()
    };
    let mut doors = Vec::new();
    let mut open =
        |name: &str, purpose, listen: &Listen, failed: &dyn Fn(BindError) -> StartError| {
            let (sockets, listen) = match passed.take(name, listen)? {
                Some(passed) => passed,
                None => (vec![listener::bind(listen).map_err(failed)?], listen.clone()),
            };
            doors.push(Opened { name: name.into(), purpose, listen, sockets });
            Ok::<_, StartError>(())
        };
    open(CONTROL, Purpose::Control, &control, &StartError::Control)?;
    for (name, listen) in &config.listen {
        let failed = |source| StartError::Listen { door: name.clone(), source };
        open(name, Purpose::Door, listen, &failed)?;
    }
    Ok(doors)
}

impl Daemon {
    /// Serves all doors, the control socket first.
    pub(super) async fn open_doors(self: &Arc<Self>, doors: Vec<Opened>) {
        // A reload must not come between: what is spoken comes of the configuration that the doors were opened with.
        let _running = self.running.lock().await;
        for opened in doors {
            let speaks = match opened.purpose {
                Purpose::Control => Speaks::Control,
                Purpose::Door => self.speaks(&opened.name, &opened.listen),
            };
            let shutdown = match speaks {
                Speaks::Master(..) => self.claimed.clone(),
                _ => self.shutdown.clone(),
            };
            self.spawn_door(opened, speaks, shutdown);
        }
    }

    fn speaks(self: &Arc<Self>, name: &str, listen: &Listen) -> Speaks {
        let name: Arc<str> = name.into();
        match listen.protocol {
            Protocol::Dovecot => {
                Speaks::HandOver(Peers::new(&listen.peers), Arc::new(listen.clone()))
            }
            Protocol::DovecotAuth => Speaks::Auth(self.auth_door(name, listen), SocketKind::Client),
            Protocol::DovecotMaster => {
                let (kind, openness) = who_may_claim(listen);
                Speaks::Master(self.master_door(name, listen), kind, openness)
            }
            Protocol::PostfixPolicy => {
                let sending = Arc::clone(&self.sending);
                Speaks::Policy(Arc::new(PolicyDoor::new(self.door(name, listen), sending)))
            }
            Protocol::Socketmap => Speaks::Maps(Arc::new(MapsDoor::new(self.door(name, listen)))),
            Protocol::Saslauthd => Speaks::Saslauthd(Arc::new(self.door(name, listen))),
            Protocol::Checkpassword => Speaks::Checkpassword(Arc::new(self.door(name, listen))),
            Protocol::DovecotDict => match PasswordKey::parse(listen.password_key.expose()) {
                Some(key) => {
                    Speaks::Dict(Arc::new(DictDoor { door: self.door(name, listen), key }))
                }
                // The configuration's own check refuses what is no key.
                None => Speaks::Nothing,
            },
            Protocol::Http => {
                let certificates = self.certificates.get(&*name).cloned();
                let parts = self.http_parts(self.door(Arc::clone(&name), listen));
                Speaks::Http(Arc::new(HttpDoor::new(name, listen, parts)), certificates)
            }
        }
    }

    fn http_parts(self: &Arc<Self>, door: Door) -> http::Parts {
        let (daemon, core) = (Arc::clone(self), Arc::clone(&self.core));
        http::Parts {
            lookups: http::Lookups::over(&door),
            shield: self.shield(),
            decide: Arc::new(move |attempt| {
                let door = door.clone();
                Box::pin(async move { door.decide(attempt).await })
            }),
            health: Arc::new(move || {
                let daemon = Arc::clone(&daemon);
                Box::pin(async move { daemon.health().await })
            }),
            forget: Arc::new(move |name| {
                let core = Arc::clone(&core);
                Box::pin(async move {
                    match name {
                        Some(name) => core.forget(&name).await,
                        None => core.forget_all(),
                    }
                })
            }),
            metrics: self.metrics.clone(),
        }
    }

    fn shield(&self) -> http::Shield {
        let core = Arc::clone(&self.core);
        let (throttle, lists) = (Arc::clone(core.throttle()), Arc::clone(&self.lists));
        http::Shield {
            throttle,
            normalise: Arc::new(move |typed| {
                let login = Login::parse(typed.as_bytes(), &core.setup().names).ok()?;
                Some(login.address.to_string())
            }),
            change: Arc::new(move |change| {
                let lists = Arc::clone(&lists);
                Box::pin(async move { change_shield(&lists, change).await })
            }),
        }
    }

    fn door(&self, name: Arc<str>, listen: &Listen) -> Door {
        let shared = Shared {
            core: Arc::clone(&self.core),
            lookup: Arc::clone(&self.lookup),
            metrics: self.metrics.clone(),
            tracker: self.tracker.clone(),
        };
        Door::new(name, listen, shared)
    }

    fn auth_door(&self, name: Arc<str>, listen: &Listen) -> Arc<AuthDoor> {
        Arc::new(AuthDoor {
            door: self.door(name, listen),
            greeting: Arc::clone(&self.greeting),
            claims: self.claims.clone(),
            temp_failure: listen.temp_failure,
        })
    }

    fn master_door(&self, name: Arc<str>, listen: &Listen) -> Arc<MasterDoor> {
        Arc::new(MasterDoor {
            door: self.door(name, listen),
            claims: self.claims.clone(),
            server_pid: std::process::id(),
        })
    }

    fn spawn_door(self: &Arc<Self>, opened: Opened, speaks: Speaks, shutdown: CancellationToken) {
        let Opened { name: door, listen, sockets, .. } = opened;
        let proxies = Proxies::of(&door, &listen, &self.metrics).map(Arc::new);
        // Behind a proxy it is the client that must be allowed, and that is seen later.
        let allow = if proxies.is_some() { Vec::new() } else { listen.allow.clone() };
        let limits = Limits {
            places: listener::places(listen.max_connections),
            allow,
            door: Arc::clone(&door),
            metrics: self.metrics.clone(),
        };
        let (daemon, speaks) = (Arc::clone(self), Arc::new(speaks));
        let serve = move |connection: Connection| {
            let (daemon, speaks) = (Arc::clone(&daemon), Arc::clone(&speaks));
            let (door, proxies) = (Arc::clone(&door), proxies.clone());
            async move {
                // Connections outlive their listener: Dovecot's login processes keep theirs over a reload.
                let ending = match *speaks {
                    // The mail processes of the last logins still ask.
                    Speaks::Master(..) => daemon.claimed.clone(),
                    _ => daemon.ending.clone(),
                };
                let connection = match proxies {
                    None => Some(connection),
                    Some(proxies) => {
                        ending.run_until_cancelled(proxies.let_in(connection)).await.flatten()
                    }
                };
                let Some(connection) = connection else { return };
                if let Err(error) = daemon.serve(connection, &speaks, ending).await {
                    tracing::debug!(%door, %error, "connection ended");
                }
            }
        };
        for socket in sockets {
            let (limits, serve) = (limits.clone(), serve.clone());
            let (shutdown, tracker) = (shutdown.clone(), self.tracker.clone());
            self.tracker.spawn(async move {
                accept_loop(socket, limits, shutdown, &tracker, serve).await;
            });
        }
    }

    async fn serve(
        self: &Arc<Self>,
        connection: Connection,
        speaks: &Speaks,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        let Connection { stream, peer, guard: _guard } = connection;
        // In a box of its own size: else each connection takes the room of the largest of all these, and moves it about.
        let serving: Boxed<'_> = match speaks {
            Speaks::Auth(door, kind) => {
                let cuid = self.connections.fetch_add(1, Ordering::Relaxed);
                Box::pin(dovecot::serve(stream, Arc::clone(door), *kind, peer, cuid, shutdown))
            }
            Speaks::Master(door, kind, openness) => {
                let reader = reader(peer, openness);
                Box::pin(dovecot_master::serve(stream, Arc::clone(door), *kind, reader, shutdown))
            }
            Speaks::Checkpassword(door) => {
                Box::pin(checkpassword::serve(stream, Arc::clone(door), peer, shutdown))
            }
            Speaks::Dict(door) => {
                Box::pin(dovecot_dict::serve(stream, Arc::clone(door), peer, shutdown))
            }
            Speaks::Http(door, None) => Box::pin(async move {
                http::serve(stream, peer, Arc::clone(door), shutdown).await;
                Ok(())
            }),
            Speaks::Http(door, Some(certificates)) => Box::pin(async move {
                let shaken = shutdown.run_until_cancelled(certificates.accept(stream)).await;
                let Some(stream) = shaken.transpose()? else { return Ok(()) };
                http::serve(stream, peer, Arc::clone(door), shutdown).await;
                Ok(())
            }),
            Speaks::Maps(door) => Box::pin(maps::serve(stream, Arc::clone(door), shutdown)),
            Speaks::Policy(door) => Box::pin(policy::serve(stream, Arc::clone(door), shutdown)),
            Speaks::HandOver(peers, listen) => Box::pin(async move {
                self.take_over(stream, peers, listen, shutdown).await;
                Ok(())
            }),
            Speaks::Saslauthd(door) => {
                Box::pin(saslauthd::serve(stream, Arc::clone(door), peer, shutdown))
            }
            Speaks::Control => Box::pin(async move {
                let uid = peer.credentials.map(|peer| peer.uid);
                let answer = |request| self.answer(request);
                control::serve(stream, uid, answer, shutdown).await
            }),
            Speaks::Nothing => return Ok(()),
        };
        serving.await
    }

    /// Serves Dovecot's own sockets as long as the shim is there that handed them over (login.md D-4).
    async fn take_over(
        self: &Arc<Self>,
        stream: Stream,
        peers: &Peers,
        listen: &Listen,
        shutdown: CancellationToken,
    ) {
        let Stream::Unix(stream) = stream else { return };
        let handed = match handover::receive(&stream, peers).await {
            Ok(handed) => handed,
            Err(error) => {
                tracing::warn!(%error, "hand-over of Dovecot's sockets refused");
                return;
            }
        };
        let HandOver { base_dir, version, sockets } = handed;
        let count = sockets.len();
        let served = shutdown.child_token();
        let claimable = self.claimed.child_token();
        // Two Dovecots, one in a chroot, may give the same path: the first socket tells them apart.
        let first = sockets.first().and_then(|socket| socket.listener.inode());
        let key = base_dir.join(format!("#{}", first.unwrap_or_default()));
        let turn = self.handed_over.replace(key.clone(), served.clone());
        for socket in sockets {
            let until = match socket.kind {
                HandedKind::Master | HandedKind::Userdb => &claimable,
                _ => &served,
            };
            self.serve_handed(socket, listen, until.clone());
        }
        tracing::info!(dovecot.base_dir = %base_dir.display(), %version, sockets = count, "serving Dovecot's sockets");
        if let Err(error) = handover::acknowledge(&stream, count).await {
            tracing::warn!(%error, "the shim does not take our word");
        }
        tokio::select! {
            () = handover::gone(&stream) => {
                tracing::info!(dovecot.base_dir = %base_dir.display(), "Dovecot's shim is gone, its sockets with it");
            }
            () = served.cancelled() => {}
        }
        served.cancel();
        // When the daemon ends, it is not the shim that went: the last logins are still to be claimed.
        if !shutdown.is_cancelled() {
            claimable.cancel();
        }
        self.handed_over.remove(&key, turn);
    }

    fn serve_handed(
        self: &Arc<Self>,
        socket: HandedSocket,
        listen: &Listen,
        shutdown: CancellationToken,
    ) {
        // Every socket of Dovecot's is a door of the same name: an operator thinks of "dovecot".
        let door: Arc<str> = "dovecot".into();
        let speaks = match socket.kind {
            HandedKind::Login => {
                Speaks::Auth(self.auth_door(Arc::clone(&door), listen), SocketKind::Login)
            }
            HandedKind::Client | HandedKind::Legacy => {
                Speaks::Auth(self.auth_door(Arc::clone(&door), listen), SocketKind::Client)
            }
            HandedKind::Master => {
                let master = self.master_door(Arc::clone(&door), listen);
                Speaks::Master(master, MasterKind::Master, Openness::Some)
            }
            HandedKind::Userdb => {
                let master = self.master_door(Arc::clone(&door), listen);
                Speaks::Master(master, MasterKind::Userdb, openness(&socket.place, listen))
            }
            HandedKind::Token | HandedKind::TokenLogin => Speaks::Nothing,
        };
        tracing::debug!(name = %socket.name, kind = %socket.kind, "socket handed over");
        let (listen, sockets) = (listen.clone(), vec![socket.listener]);
        let opened = Opened { name: door, purpose: Purpose::Door, listen, sockets };
        self.spawn_door(opened, speaks, shutdown);
    }
}

/// Whether anything was there to change. What the store did not take is in force all the same, and the book tries again.
async fn change_shield(lists: &ListBook, change: ShieldChange) -> Result<bool, Full> {
    match change {
        ShieldChange::Add(entry) => lists.add(&[entry]).await.map(|_kept| true),
        ShieldChange::Remove(list, whom) => Ok(lists.remove(list, &whom).await.is_some()),
        ShieldChange::Reset { client, login } => {
            let subject = Subject { client, login: login.as_deref(), ..Subject::default() };
            Ok(lists.reset(&subject, clock::now()))
        }
    }
}

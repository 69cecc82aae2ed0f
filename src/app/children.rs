//! The registry of the actors of which there is one.
//!
//! To add an actor: write it in a file of its own under `actors` or `frontend`, add a row here, and
//! add its messages to `actors::messages`. The row names its label in metrics, its restart policy,
//! when it is stopped, and how to build it. Children start in the order of the rows.

use tracing::warn;

use crate::actors::child::RestartPolicy::{Always, AtMost};
use crate::actors::child::ShutdownPhase::{AfterForwarding, BeforeForwarding, WithProcess};
use crate::actors::child::{ChildSpec, ChildStart};
use crate::actors::control::joins::Joins;
use crate::actors::control::links::{LinkSource, LinksWatch};
use crate::actors::control::membership::Membership;
use crate::actors::control::routing::Routing;
use crate::actors::integrations::amt::{self, Amt};
use crate::actors::integrations::discovery::{self, DiscoveryActor};
use crate::actors::integrations::docker::DockerWatch;
use crate::actors::integrations::mnat::{self, Mnat};
use crate::actors::integrations::streams::{self, Streams};
use crate::actors::integrations::webhook::{self, WebhookSender};
use crate::actors::supervision::ActorRole;
use crate::frontend::http::{HttpConfig, HttpServerActor};
use crate::sys::confinement::FileAccess::{self, ReadProc};

/// Returns the registry. `http` configures the HTTP server, if it is enabled.
#[rustfmt::skip]
pub fn children(http: Option<HttpConfig>, links: LinkSource) -> Vec<ChildSpec> {
    vec![
        ChildSpec::on_own_thread("joins", ReadProc, Always, AfterForwarding, |s| Some(Joins::new(s.context(), s.death_guard()))),
        ChildSpec::on_own_thread("membership", FileAccess::None, Always, AfterForwarding, membership),
        ChildSpec::on_own_thread("routing", FileAccess::None, AtMost(3), AfterForwarding, |s| Some(Routing::new(s.context(), s.death_guard()))),
        ChildSpec::new("links", Always, AfterForwarding, move |s| Some(LinksWatch::new(s.context(), s.death_guard(), links.clone()))),
        ChildSpec::new("metrics", Always, WithProcess, move |s| http_server(s, &http)),
        ChildSpec::new(mnat::ACTOR_NAME, Always, BeforeForwarding, Mnat::from_settings),
        ChildSpec::on_own_thread(amt::ACTOR_NAME, FileAccess::None, Always, AfterForwarding, Amt::from_settings),
        ChildSpec::on_own_thread(discovery::ACTOR_NAME, FileAccess::None, Always, BeforeForwarding, DiscoveryActor::from_settings),
        ChildSpec::on_own_thread(streams::ACTOR_NAME, FileAccess::None, Always, WithProcess, |s| Some(Streams::new(s.context(), s.death_guard()))),
        ChildSpec::new(webhook::ACTOR_NAME, Always, WithProcess, |s| Some(WebhookSender::new(s.context(), s.death_guard()))),
        ChildSpec::on_own_thread("docker", FileAccess::None, Always, WithProcess, |s| Some(DockerWatch::new(s.context(), s.death_guard()))),
    ]
}

/// Returns the `actor` labels of all actors.
pub fn roles() -> Vec<&'static str> {
    let children = children(None, LinkSource::Netlink);
    let roles = children.iter().map(|child| child.role);
    roles
        .chain([ActorRole::INTERFACE, ActorRole::FORWARDER])
        .collect()
}

/// Returns a new membership actor. It queries the hosts at its start, so it needs their answers: a
/// process that replaces another one starts it later.
fn membership(start: &ChildStart) -> Option<Membership> {
    let context = start.context();
    let receives = context.gate.is_open();
    receives.then(|| Membership::new(context, start.death_guard()))
}

/// Returns a new instance of the HTTP server, if it is enabled. A process that replaces another one
/// serves clients later.
fn http_server(start: &ChildStart, http: &Option<HttpConfig>) -> Option<HttpServerActor> {
    if !start.context().gate.is_open() {
        return None;
    }
    match http.as_ref()?.try_clone() {
        Ok(config) => {
            let (context, death_guard) = (start.context(), start.death_guard());
            Some(HttpServerActor::new(context, death_guard, config))
        }
        Err(e) => {
            warn!("http: cannot serve: {e}; forwarding continues");
            None
        }
    }
}

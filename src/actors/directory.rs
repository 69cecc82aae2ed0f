//! Which actor receives which message.

use std::any::{Any, TypeId};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::prelude::*;
use ahash::AHashMap;
use arc_swap::ArcSwap;

type Recipients = AHashMap<TypeId, Arc<dyn Any + Send + Sync>>;

/// Finds the receiver of a message by the type of the message, so that actors do not know each
/// other. An actor registers its messages when it starts; a restarted actor replaces the former
/// registration. Lookups do not lock.
#[derive(Default)]
pub struct Directory {
    recipients: ArcSwap<Recipients>,
}

/// Why a message got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no actor answers")]
pub struct NoReceiver;

/// Registers the messages of one actor. See [`Directory::register`].
pub struct Registration<'d, A: Actor> {
    directory: &'d Directory,
    address: Addr<A>,
}

impl<A: Actor> Registration<'_, A> {
    /// Registers the actor as the receiver of `M`.
    pub fn receives<M>(self) -> Self
    where
        A: Handler<M>,
        M: Message + Send + 'static,
        M::Result: Send,
        A::Context: ToEnvelope<A, M>,
    {
        let recipient: Arc<dyn Any + Send + Sync> = Arc::new(self.address.clone().recipient::<M>());
        self.directory.recipients.rcu(|old| {
            let mut new = Recipients::clone(old);
            new.insert(TypeId::of::<M>(), recipient.clone());
            new
        });
        self
    }
}

impl Directory {
    /// Begins the registration of an actor.
    pub fn register<A: Actor>(&self, address: Addr<A>) -> Registration<'_, A> {
        Registration {
            directory: self,
            address,
        }
    }

    /// Removes the receiver of `M`.
    pub fn remove<M: 'static>(&self) {
        self.recipients.rcu(|old| {
            let mut new = Recipients::clone(old);
            new.remove(&TypeId::of::<M>());
            new
        });
    }

    /// Returns the receiver of `M`. It may have died and not be restarted yet.
    pub fn receiver<M>(&self) -> Option<Recipient<M>>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let recipients = self.recipients.load();
        let recipient = recipients.get(&TypeId::of::<M>())?;
        recipient.downcast_ref::<Recipient<M>>().cloned()
    }

    /// Sends a message past the mailbox limit. Returns whether it has a receiver.
    pub fn do_send<M>(&self, message: M) -> bool
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let Some(receiver) = self.receiver::<M>() else {
            return false;
        };
        receiver.do_send(message);
        true
    }

    /// Sends a message and waits for the answer, for `patience` at most.
    pub fn ask<M>(
        &self,
        message: M,
        patience: Duration,
    ) -> impl Future<Output = Result<M::Result, NoReceiver>> + use<M>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let receiver = self.receiver::<M>();
        async move {
            let receiver = receiver.ok_or(NoReceiver)?;
            let answer = receiver.send(message).timeout(patience).await;
            answer.map_err(|_| NoReceiver)
        }
    }
}

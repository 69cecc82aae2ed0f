//! The directory of the receivers of messages.

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

    /// Returns the receiver of `M`. It may have died and not be restarted yet. The mailbox limit
    /// does not apply to the first message of each returned value.
    pub fn receiver<M>(&self) -> Option<Recipient<M>>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let recipients = self.recipients.load();
        let recipient = recipients.get(&TypeId::of::<M>())?;
        recipient.downcast_ref::<Recipient<M>>().cloned()
    }

    /// Sends a message past the mailbox limit. Returns whether it has a receiver, which may have
    /// died and not be restarted yet.
    pub fn do_send<M>(&self, message: M) -> bool
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        self.with_receiver(|receiver| receiver.do_send(message))
            .is_some()
    }

    /// Sends a message within the mailbox limit. Returns false if the mailbox is full, or if the
    /// message has no receiver.
    pub fn try_send<M>(&self, message: M) -> bool
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let sent = self.with_receiver(|receiver| receiver.try_send(message));
        sent.is_some_and(|result| result.is_ok())
    }

    /// Sends a message within the mailbox limit and waits for the answer, for `patience` at most.
    pub fn ask<M>(
        &self,
        message: M,
        patience: Duration,
    ) -> impl Future<Output = Result<M::Result, NoReceiver>> + use<M>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let request = self.with_receiver(|receiver| receiver.send(message).timeout(patience));
        async move {
            let answer = request.ok_or(NoReceiver)?.await;
            answer.map_err(|_| NoReceiver)
        }
    }

    /// Calls `send` with the registered recipient itself, not with a clone: actix applies the
    /// mailbox limit to each sender, and a new clone may always send one message.
    fn with_receiver<M, R>(&self, send: impl FnOnce(&Recipient<M>) -> R) -> Option<R>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let recipients = self.recipients.load();
        let recipient = recipients.get(&TypeId::of::<M>())?;
        recipient.downcast_ref::<Recipient<M>>().map(send)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Slow;

    impl Actor for Slow {
        type Context = Context<Self>;

        fn started(&mut self, ctx: &mut Self::Context) {
            ctx.set_mailbox_capacity(2);
        }
    }

    #[derive(Message)]
    #[rtype(result = "u32")]
    struct Number(u32);

    impl Handler<Number> for Slow {
        type Result = u32;

        fn handle(&mut self, Number(n): Number, _: &mut Self::Context) -> u32 {
            n
        }
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    #[actix::test]
    async fn full_mailbox_refuses_messages() {
        let directory = Directory::default();
        assert!(!directory.try_send(Number(0)));
        assert_eq!(directory.ask(Number(0), PATIENCE).await, Err(NoReceiver));
        directory.register(Slow.start()).receives::<Number>();
        assert_eq!(directory.ask(Number(7), PATIENCE).await, Ok(7));
        // The actor shares this thread, so it handles nothing during the loop.
        let accepted = (0..100).filter(|n| directory.try_send(Number(*n))).count();
        assert!((1..10).contains(&accepted), "{accepted}");
        assert_eq!(directory.ask(Number(8), PATIENCE).await, Ok(8));
        assert!(directory.try_send(Number(9)));
        directory.remove::<Number>();
        assert!(!directory.do_send(Number(9)));
    }
}

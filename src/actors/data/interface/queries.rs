//! Answers queries.

use actix::prelude::*;

use super::Interface;
use crate::actors::messages::{
    DropPage, FLOWS_PER_QUERY, FlowPage, FlushFlows, QueryDrops, QueryFlows,
};

impl Handler<QueryFlows> for Interface {
    type Result = FlowPage;

    fn handle(&mut self, query: QueryFlows, _: &mut Self::Context) -> FlowPage {
        self.update_name(&self.context.snapshot.load_full());
        let flows = &self.switch.flows;
        let (flows, next) = flows.page(query.position, FLOWS_PER_QUERY, &query.filter);
        FlowPage {
            index: self.index,
            interface: self.name.clone(),
            flows,
            next,
        }
    }
}

impl Handler<QueryDrops> for Interface {
    type Result = DropPage;

    fn handle(&mut self, _: QueryDrops, _: &mut Self::Context) -> DropPage {
        self.update_name(&self.context.snapshot.load_full());
        DropPage {
            interface: self.name.clone(),
            flushed_ms: self.flushed_ms,
            drops: self.switch.drops.iter().copied().collect(),
        }
    }
}

impl Handler<FlushFlows> for Interface {
    type Result = u64;

    fn handle(&mut self, _: FlushFlows, _: &mut Self::Context) -> u64 {
        let flushed = self.switch.flows.flush();
        self.flushed_ms = self.context.now_ms();
        self.update_flow_metrics();
        flushed
    }
}

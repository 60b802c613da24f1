"""Pictures of flows. A flow is series-parallel, so one recursion lays it out exactly; no layout engine, no network."""

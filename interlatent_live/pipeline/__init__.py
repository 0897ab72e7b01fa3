"""What the services do, as state machines without sockets: the cores that services/ drives."""

"""Indications (DSP1054): who is told of what, and the telling.

records      filters, destinations and subscriptions, as they are kept in the pool
book         all of them: checked, limited, found by their keys, changed durably
predefined   the filters that are always there
events       a change of the engine -> indications
feed         the changes in their order, read once for all destinations
delivery     each destination's place in that order, its retries, its sequence numbers
export       one indication to one listener over HTTP or HTTPS
service      these together; what providers and the server see

The engine's numbered changes are the queue: a destination is a position in them, kept in the pool, and what it gets is
made of them again after a restart. So nothing is held for a listener that is away, whatever their number, and what is
too old for the engine's history (10,000 changes) is lost for it, counted and said.
"""

"""The CIM (WBEM) facade: CIM-XML over HTTP, computed live through ``engine.api.EngineApi``. docs/cim-reference.md.

server, auth          aiohttp listener: HTTP, users, limits
cimxml                request bytes -> Request, results -> response bytes (DSP0201); pure
operations, pull      the WBEM operations (DSP0200) over ...
repository, schema/   ... the classes, and ...
registry              ... the tables of ...
providers/, methods/  ... instances, associations and methods
context               what one request has seen of the engine
"""

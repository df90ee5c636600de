"""CIM (WBEM) facade. Empty until its turn comes; see docs/roadmap.md."""

"""twinvol's block store and replication engine. Knows nothing of iSCSI, CIM or HTTP."""

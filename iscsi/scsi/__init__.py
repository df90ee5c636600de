"""SCSI device server: CDBs in, status, sense and data out (SAM-5, SPC-4, SBC-3)."""

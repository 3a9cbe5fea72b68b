"""The installed command over a database that is no file to it: who leads is decided by the row, as with a server.

A dialect by another name is SQLite all the same (SQLAlchemy, *Registering New Dialects*).
"""

import sys

from sqlalchemy.dialects import registry

from fedops_mqtt.cli import main

registry.register("shared", "sqlalchemy.dialects.sqlite.pysqlite", "SQLiteDialect_pysqlite")

if __name__ == "__main__":
    sys.exit(main())

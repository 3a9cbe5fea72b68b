-- The journal of 0.1.0 (commit cd8e46e), as it made and filled it.
CREATE TABLE client_metrics (
    id INTEGER NOT NULL,
    at FLOAT NOT NULL,
    run_id VARCHAR(64),
    task_id VARCHAR(64) NOT NULL,
    client_mac VARCHAR(17) NOT NULL,
    kind VARCHAR(32) NOT NULL,
    round BIGINT NOT NULL,
    "values" JSON NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX ix_client_metrics_at ON client_metrics (at);
CREATE INDEX ix_client_metrics_client ON client_metrics (client_mac, id);
CREATE INDEX ix_client_metrics_run ON client_metrics (run_id, client_mac, id);
CREATE TABLE epochs (
    owner VARCHAR(256) NOT NULL,
    epoch BIGINT NOT NULL,
    PRIMARY KEY (owner)
);
CREATE TABLE events (
    id INTEGER NOT NULL,
    at FLOAT NOT NULL,
    kind VARCHAR(64) NOT NULL,
    run_id VARCHAR(64),
    task_id VARCHAR(64),
    client_mac VARCHAR(17),
    detail JSON NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX ix_events_at ON events (at);
CREATE INDEX ix_events_client ON events (client_mac, id);
CREATE INDEX ix_events_run ON events (run_id, id);
CREATE TABLE lease (
    name VARCHAR(32) NOT NULL,
    term BIGINT NOT NULL,
    holder VARCHAR(256) NOT NULL,
    held_until FLOAT NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE runs (
    run_id VARCHAR(64) NOT NULL,
    task_id VARCHAR(64) NOT NULL,
    state TEXT NOT NULL,
    secret VARCHAR(128) NOT NULL,
    created_at FLOAT NOT NULL,
    ended_at FLOAT,
    outcome VARCHAR(16),
    reason TEXT,
    is_archived BOOLEAN NOT NULL,
    PRIMARY KEY (run_id)
);
CREATE INDEX ix_runs_created_at ON runs (created_at);
CREATE INDEX ix_runs_is_archived ON runs (is_archived);
CREATE INDEX ix_runs_task_id ON runs (task_id);
CREATE TABLE schema_version (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);
CREATE TABLE launches (
    run_id VARCHAR(64) NOT NULL,
    launch INTEGER NOT NULL,
    log_path TEXT NOT NULL,
    secret_file TEXT NOT NULL,
    pid BIGINT,
    process_started_at FLOAT,
    exit_reason TEXT,
    PRIMARY KEY (run_id, launch),
    FOREIGN KEY(run_id) REFERENCES runs (run_id) ON DELETE CASCADE
);
CREATE TABLE members (
    run_id VARCHAR(64) NOT NULL,
    client_mac VARCHAR(17) NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (run_id, client_mac),
    FOREIGN KEY(run_id) REFERENCES runs (run_id) ON DELETE CASCADE
);
CREATE TABLE rounds (
    run_id VARCHAR(64) NOT NULL,
    launch INTEGER NOT NULL,
    round INTEGER NOT NULL,
    at FLOAT NOT NULL,
    metrics JSON NOT NULL,
    duration_s FLOAT,
    bytes_in BIGINT NOT NULL,
    bytes_out BIGINT NOT NULL,
    gl_model BIGINT NOT NULL,
    PRIMARY KEY (run_id, launch, round),
    FOREIGN KEY(run_id) REFERENCES runs (run_id) ON DELETE CASCADE
);
INSERT INTO client_metrics (at, run_id, task_id, client_mac, kind, round, "values") VALUES (1002.0, 'digits-20261126-100000-aaaa', 'digits', '02:00:00:00:00:01', 'round', 1, '{"loss": 0.25}');
INSERT INTO client_metrics (at, run_id, task_id, client_mac, kind, round, "values") VALUES (1002.0, 'digits-20261126-110000-bbbb', 'digits', '02:00:00:00:00:01', 'round', 1, '{"loss": 0.25}');
INSERT INTO epochs (owner, epoch) VALUES ('manager', 7);
INSERT INTO events (at, kind, run_id, task_id, detail) VALUES (1000.25, 'RunCreated', 'digits-20261126-100000-aaaa', 'digits', '{}');
INSERT INTO events (at, kind, run_id, task_id, detail) VALUES (1001.0, 'ServerLaunched', 'digits-20261126-100000-aaaa', 'digits', '{"launch": 1}');
INSERT INTO events (at, kind, run_id, task_id, detail) VALUES (1000.25, 'RunCreated', 'digits-20261126-110000-bbbb', 'digits', '{}');
INSERT INTO events (at, kind, run_id, task_id, detail) VALUES (1001.0, 'ServerLaunched', 'digits-20261126-110000-bbbb', 'digits', '{"launch": 1}');
INSERT INTO lease (name, term, holder, held_until) VALUES ('manager', 1000, 'first', 1015.0);
INSERT INTO runs (run_id, task_id, state, secret, created_at, ended_at, outcome, reason, is_archived) VALUES ('digits-20261126-100000-aaaa', 'digits', '{"spec":{"run_id":"digits-20261126-100000-aaaa","task_id":"digits","num_rounds":3,"min_clients":2,"clients":["02:00:00:00:00:01","02:00:00:00:00:02"],"join":"invited","is_adopted":false,"limits":{"trigger_answer_s":30.0,"trigger_retry_s":5.0,"server_start_s":60.0,"join_s":120.0,"run_s":86400.0,"close_grace_s":10.0,"max_launches":3,"max_attempts":3}},"created_at":1000.25,"status":"finished","outcome":"failed","reason":"why","launch":1,"launched_at":1001.0,"exited_at":null,"exit_reason":null,"is_unreachable":false,"server":null,"ready_at":null,"stop_reason":null,"ended_at":1001.0,"members":{}}', '7373737373737373737373737373737373737373737373737373737373737373', 1000.25, 1001.0, 'failed', 'why', 1);
INSERT INTO runs (run_id, task_id, state, secret, created_at, is_archived) VALUES ('digits-20261126-110000-bbbb', 'digits', '{"spec":{"run_id":"digits-20261126-110000-bbbb","task_id":"digits","num_rounds":3,"min_clients":2,"clients":["02:00:00:00:00:01","02:00:00:00:00:02"],"join":"invited","is_adopted":false,"limits":{"trigger_answer_s":30.0,"trigger_retry_s":5.0,"server_start_s":60.0,"join_s":120.0,"run_s":86400.0,"close_grace_s":10.0,"max_launches":3,"max_attempts":3}},"created_at":1000.25,"status":"starting","outcome":null,"reason":null,"launch":1,"launched_at":1001.0,"exited_at":null,"exit_reason":null,"is_unreachable":false,"server":null,"ready_at":null,"stop_reason":null,"ended_at":null,"members":{}}', '7373737373737373737373737373737373737373737373737373737373737373', 1000.25, 0);
INSERT INTO schema_version (version) VALUES (2);
INSERT INTO launches (run_id, launch, log_path, secret_file, pid, process_started_at) VALUES ('digits-20261126-100000-aaaa', 1, '/log', '/secret', 77, 5.5);
INSERT INTO launches (run_id, launch, log_path, secret_file, pid, process_started_at) VALUES ('digits-20261126-110000-bbbb', 1, '/log', '/secret', 77, 5.5);
INSERT INTO members (run_id, client_mac, state) VALUES ('digits-20261126-100000-aaaa', '02:00:00:00:00:01', '{"status":"triggered","attempt":1,"last_attempt":1,"instance":"i","launch":1,"reason":null,"first_fired_at":1001.0,"fired_at":1001.0,"training_at":null,"lost_at":null,"stop_said_at":null,"phase":null,"round":0}');
INSERT INTO members (run_id, client_mac, state) VALUES ('digits-20261126-100000-aaaa', '02:00:00:00:00:02', '{"status":"chosen","attempt":0,"last_attempt":0,"instance":null,"launch":0,"reason":null,"first_fired_at":null,"fired_at":null,"training_at":null,"lost_at":null,"stop_said_at":null,"phase":null,"round":0}');
INSERT INTO members (run_id, client_mac, state) VALUES ('digits-20261126-110000-bbbb', '02:00:00:00:00:01', '{"status":"triggered","attempt":1,"last_attempt":1,"instance":"i","launch":1,"reason":null,"first_fired_at":1001.0,"fired_at":1001.0,"training_at":null,"lost_at":null,"stop_said_at":null,"phase":null,"round":0}');
INSERT INTO members (run_id, client_mac, state) VALUES ('digits-20261126-110000-bbbb', '02:00:00:00:00:02', '{"status":"chosen","attempt":0,"last_attempt":0,"instance":null,"launch":0,"reason":null,"first_fired_at":null,"fired_at":null,"training_at":null,"lost_at":null,"stop_said_at":null,"phase":null,"round":0}');
INSERT INTO rounds (run_id, launch, round, at, metrics, duration_s, bytes_in, bytes_out, gl_model) VALUES ('digits-20261126-100000-aaaa', 1, 1, 1002.0, '{"loss": 0.5}', 1.5, 1, 2, 1);
INSERT INTO rounds (run_id, launch, round, at, metrics, duration_s, bytes_in, bytes_out, gl_model) VALUES ('digits-20261126-110000-bbbb', 1, 1, 1002.0, '{"loss": 0.5}', 1.5, 1, 2, 1);

#!/bin/sh
# Makes what compose.yaml mounts: a fleet in ./fleet whose broker is called `broker`, with five bundles.
# Run it as the user that will start the containers, not as root: mosquitto gives up root and could not read its files.
#   sh make-fleet.sh          COMMAND may name another fedops-mqtt than the one on PATH
set -eu
cd "$(dirname "$0")"
COMMAND="${COMMAND:-fedops-mqtt}"
FEDOPS_MQTT_FLEET_DIR="${FEDOPS_MQTT_FLEET_DIR:-fleet}"
export FEDOPS_MQTT_FLEET_DIR

"$COMMAND" fleet init --host broker --host localhost --host 127.0.0.1 --broker-dir /mosquitto/fedops
"$COMMAND" fleet enrol --role server server-digits --task digits --host manager --host localhost
"$COMMAND" fleet enrol --task digits --app fedops_mqtt.demo:client_app \
    02:00:00:00:00:01 02:00:00:00:00:02 02:00:00:00:00:03

# The containers run as whoever owns these files; a shell exports neither of these, and Compose reads them here.
printf 'UID=%s\nGID=%s\n' "$(id -u)" "$(id -g)" >"$(dirname "$FEDOPS_MQTT_FLEET_DIR")/.env"

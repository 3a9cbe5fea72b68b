"""`python -m fedops_mqtt.cli` is `fedops-mqtt`; it must not do anything else."""

from fedops_mqtt.cli import main

main()

"""What every process needs: settings, HTTP access, processes, files, service manager. Decides nothing."""

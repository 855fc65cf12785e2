"""What every room uses: flags and one-line errors, whole files, devices, models' folders, languages."""

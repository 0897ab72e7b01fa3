"""The main job: a trained agent explained while it acts, on one machine, with no set-up."""

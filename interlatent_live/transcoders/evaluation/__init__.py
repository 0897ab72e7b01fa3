"""What a transcoder is worth: reconstruction, features, stability, behaviour, a reasoned gate."""

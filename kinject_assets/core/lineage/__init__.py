"""Whether artefacts are what their manifests say, and what an answer rests on."""

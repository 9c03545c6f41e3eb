"""Where published weights are looked for."""

from sta.config.published import MODELS, locate


def test_own_folder_is_looked_in_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.delenv(MODELS, raising=False)
    (tmp_path / "openai" / "whisper-base").mkdir(parents=True)
    assert locate("openai/whisper-base") == "openai/whisper-base"
    monkeypatch.setenv(MODELS, str(tmp_path))
    assert locate("openai/whisper-base") == str(tmp_path / "openai/whisper-base")
    assert locate("openai/whisper-small") == "openai/whisper-small"
    assert locate(str(tmp_path)) == str(tmp_path)

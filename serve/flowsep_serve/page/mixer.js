// The audio graph: a source and a gain for each track, started at one time, so that they are in step.

export class Mixer {
  // Tracks are {buffer, gain, isMuted, isSolo}, of one length and rate.
  constructor(tracks) {
    this.tracks = tracks;
    const { sampleRate } = tracks[0].buffer;
    this.context = new AudioContext({ sampleRate });
    this.duration = tracks[0].buffer.duration;
    this.gains = tracks.map(() => {
      const gain = this.context.createGain();
      gain.connect(this.context.destination);
      return gain;
    });
    this.sources = [];
    this.offset = 0;
    this.startedAt = null;
    this.apply(0);
  }

  // How loud a track is now: 0 if it is muted, or another one plays alone.
  level(track) {
    const isAlone = this.tracks.some((each) => each.isSolo);
    return track.isMuted || (isAlone && !track.isSolo) ? 0 : track.gain;
  }

  apply(seconds = 0.02) {
    this.tracks.forEach((track, i) => {
      const { gain } = this.gains[i];
      if (seconds) gain.setTargetAtTime(this.level(track), this.context.currentTime, seconds / 3);
      else gain.value = this.level(track);
    });
  }

  get isPlaying() {
    return this.startedAt !== null;
  }

  get position() {
    const passed = this.isPlaying ? this.context.currentTime - this.startedAt : 0;
    return Math.min(this.duration, this.offset + Math.max(0, passed));
  }

  // Starts at once, or as soon as the browser lets the context run: its clock stands still until then. Nothing is
  // awaited, so that no other click can come between.
  play() {
    if (this.position >= this.duration) this.offset = 0;
    else this.offset = this.position;
    this.stop();
    this.context.resume();
    const when = this.context.currentTime + 0.03;
    this.sources = this.tracks.map((track, i) => {
      const source = this.context.createBufferSource();
      source.buffer = track.buffer;
      source.connect(this.gains[i]);
      source.start(when, this.offset);
      return source;
    });
    this.startedAt = when;
  }

  pause() {
    this.offset = this.position;
    this.stop();
  }

  stop() {
    for (const source of this.sources) {
      source.stop();
      source.disconnect();
    }
    this.sources = [];
    this.startedAt = null;
  }

  seek(seconds) {
    const wasPlaying = this.isPlaying;
    this.stop();
    this.offset = Math.min(this.duration, Math.max(0, seconds));
    if (wasPlaying) this.play();
  }

  close() {
    this.stop();
    return this.context.close();
  }

  // The mix as it is heard, computed and not played.
  async render() {
    const { numberOfChannels, length, sampleRate } = this.tracks[0].buffer;
    const context = new OfflineAudioContext(numberOfChannels, length, sampleRate);
    for (const track of this.tracks) {
      const source = context.createBufferSource();
      source.buffer = track.buffer;
      const gain = context.createGain();
      gain.gain.value = this.level(track);
      source.connect(gain).connect(context.destination);
      source.start();
    }
    return context.startRendering();
  }
}

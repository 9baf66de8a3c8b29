// The mixing desk: a strip for every track over one audio graph.

import { bytesOf } from "./api.js";
import { Mixer } from "./mixer.js";
import { decibels, draw, loudest } from "./spectrogram.js";
import { wavOf } from "./wav.js";

const element = (id) => document.getElementById(id);

export let mixer = null;
let strips = [];
let onError = () => {};

export function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(1).padStart(4, "0")}`;
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// Loads the stems of a job and shows them. `titles` are the tracks' names, `muted` those that begin silent.
export async function showDesk(job, titles, muted, fail, signal) {
  onError = fail;
  const contents = await Promise.all(job.stems.map((stem) => bytesOf(stem.url, signal)));
  // At the recording's own rate, where the browser has it.
  const rate = Math.min(192000, Math.max(8000, job.sample_rate));
  const decoder = new OfflineAudioContext(1, 1, rate);
  const buffers = await Promise.all(contents.map((content) => decoder.decodeAudioData(content.slice(0))));
  signal.throwIfAborted();
  closeDesk();
  const tracks = buffers.map((buffer, i) => ({ buffer, gain: 1, isMuted: muted[i], isSolo: false }));
  mixer = new Mixer(tracks);
  const pictures = buffers.map(decibels);
  const top = Math.max(...pictures.map(loudest));
  strips = tracks.map((track, i) => {
    const strip = new Strip(track, titles[i], job.stems[i].name, contents[i]);
    draw(strip.canvas, pictures[i], top);
    return strip;
  });
  element("tracks").replaceChildren(...strips.map((strip) => strip.item));
  element("warnings").replaceChildren(...job.warnings.map((sentence) => {
    const item = document.createElement("li");
    item.textContent = sentence;
    return item;
  }));
  element("seek").max = mixer.duration;
  element("save-all").onclick = guarded(async () => {
    save(new Blob([await bytesOf(`/v1/jobs/${job.id}/stems.zip`)], { type: "application/zip" }), "stems.zip");
  });
  element("desk").hidden = false;
  update();
}

export function closeDesk() {
  mixer?.close();
  mixer = null;
  strips = []; // and the sounds that they hold
  element("desk").hidden = true;
  element("tracks").replaceChildren();
}

const guarded = (work) => async () => {
  try {
    await work();
  } catch (error) {
    onError(error);
  }
};

class Strip {
  constructor(track, title, name, content) {
    this.track = track;
    this.item = document.createElement("li");
    const row = document.createElement("div");
    row.className = "row";
    const heading = document.createElement("h3");
    heading.textContent = title;
    this.mute = this.button("M", `Mute ${title}`, () => (track.isMuted = !track.isMuted));
    this.solo = this.button("S", `Solo ${title}`, () => (track.isSolo = !track.isSolo));
    const gain = document.createElement("input");
    Object.assign(gain, { type: "range", min: 0, max: 2, step: 0.01, value: 1 });
    gain.setAttribute("aria-label", `Gain of ${title}`);
    gain.oninput = () => {
      track.gain = Number(gain.value);
      this.changed();
    };
    const download = document.createElement("button");
    download.type = "button";
    download.textContent = "Download";
    download.setAttribute("aria-label", `Download ${title}`);
    download.onclick = () => save(new Blob([content]), name);
    row.append(heading, this.mute, this.solo, gain, download);
    this.stage = document.createElement("div");
    this.stage.className = "stage";
    this.canvas = document.createElement("canvas");
    this.canvas.className = "picture";
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `Spectrogram of ${title}`);
    this.needle = document.createElement("div");
    this.needle.className = "needle";
    this.stage.append(this.canvas, this.needle);
    this.stage.onclick = (event) => {
      const box = this.stage.getBoundingClientRect();
      mixer.seek(((event.clientX - box.left) / box.width) * mixer.duration);
      update();
    };
    this.item.append(row, this.stage);
    this.changed();
  }

  button(letter, label, toggle) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = letter;
    button.setAttribute("aria-label", label);
    button.onclick = () => {
      toggle();
      this.changed();
    };
    return button;
  }

  changed() {
    this.mute.setAttribute("aria-pressed", this.track.isMuted);
    this.solo.setAttribute("aria-pressed", this.track.isSolo);
    mixer.apply();
    for (const strip of strips) strip.stage.classList.toggle("silent", mixer.level(strip.track) === 0);
    this.stage.classList.toggle("silent", mixer.level(this.track) === 0);
  }
}

let frame = 0;

function update() {
  cancelAnimationFrame(frame); // one course of frames, however often this is asked for
  if (!mixer) return;
  const { position, duration } = mixer;
  if (mixer.isPlaying && position >= duration) mixer.pause();
  element("play").textContent = mixer.isPlaying ? "Pause" : "Play";
  element("seek").value = position;
  element("clock").textContent = clock(position);
  for (const strip of strips) strip.needle.style.left = `${(100 * position) / duration}%`;
  if (mixer.isPlaying) frame = requestAnimationFrame(update);
}

element("play").onclick = () => {
  if (mixer.isPlaying) mixer.pause();
  else mixer.play();
  update();
};

element("seek").oninput = () => {
  mixer.seek(Number(element("seek").value));
  update();
};

element("save-mix").onclick = guarded(async () => {
  const mix = await mixer.render();
  const channels = Array.from({ length: mix.numberOfChannels }, (_, i) => mix.getChannelData(i));
  save(wavOf(channels, mix.sampleRate), "mix.wav");
});

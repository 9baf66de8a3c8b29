// The page's course: a recording, a question, the work, the desk.

import { checkKey, deleteJob, getJob, jobEvents, newJob, Refusal, useKey } from "./api.js";
import { closeDesk, showDesk } from "./desk.js";
import { startRecording } from "./recorder.js";
import { decibels, draw } from "./spectrogram.js";

const EXAMPLE = "/page/example.flac";
const element = (id) => document.getElementById(id);

let recording = null;
let stopRecording = null;
let isAskingForMicrophone = false;
let work = null; // {id, abort} of the job that runs

function say(error) {
  const message = element("message");
  message.hidden = !error;
  message.textContent = error ? error.message : "";
  if (error) message.scrollIntoView({ block: "nearest" });
  element("key-form").hidden = !(error instanceof Refusal && error.status === 401);
}

const guarded = (course) => async (event) => {
  event?.preventDefault?.();
  say(null);
  try {
    await course(event);
  } catch (error) {
    if (error.name !== "AbortError") say(error);
  }
};

// "everything but the rain" is the rain, muted.
export function understood(line) {
  const found = /^(?:everything|all|anything)\s+(?:but|except|without)\s+(?:for\s+)?(?:the\s+)?(.+)$/i.exec(line);
  return found ? { query: found[1], isRemoved: true } : { query: line, isRemoved: false };
}

async function take(file) {
  recording = file;
  closeDesk();
  element("file").value = ""; // the same file may be chosen again
  element("source-name").textContent = `${file.name}, ${(file.size / 1e6).toFixed(2)} MB`;
  const canvas = element("source-picture");
  canvas.hidden = true;
  try {
    const decoder = new OfflineAudioContext(1, 1, 44100);
    const sound = await decoder.decodeAudioData(await file.arrayBuffer());
    if (recording !== file) return; // another one was taken meanwhile
    draw(canvas, decibels(sound));
    canvas.hidden = false;
  } catch {
    // The server may read what this browser does not.
    if (recording === file) element("source-name").textContent += "; this browser shows no picture of it";
  }
}

function showWork(isWorking) {
  element("work").hidden = element("cancel").hidden = !isWorking;
  element("separate").disabled = element("example").disabled = isWorking;
}

function showProgress(job) {
  const bar = element("progress");
  if (job.steps) bar.value = job.steps_done / job.steps;
  else bar.removeAttribute("value");
  const waits = job.position > 1 ? `Waiting: ${job.position - 1} before this one.` : "Waiting.";
  element("state").textContent = job.state === "queued" ? waits : "Separating.";
}

async function separate(file, lines) {
  if (work) return;
  const asked = lines.map(understood);
  closeDesk();
  showWork(true);
  element("state").textContent = "Uploading.";
  element("progress").removeAttribute("value");
  const abort = new AbortController();
  work = { id: null, abort };
  try {
    const job = await newJob(file, asked.map(({ query }) => query), abort.signal);
    work.id = job.id;
    remember(job.id, asked);
    await follow(job.id, asked, abort);
  } finally {
    showWork(false);
    work = null;
  }
}

async function follow(id, asked, abort) {
  let last = null;
  for await (const job of jobEvents(id, abort.signal)) {
    last = job;
    showProgress(job);
  }
  if (last?.state === "failed" || last?.state === "cancelled") {
    remember(null, []); // loaded again, the page has nothing to go on with
    throw new Error(last.error ?? "The job was cancelled.");
  }
  if (last?.state !== "done") throw new Error("The connection to the server broke: load the page again.");
  element("state").textContent = "Loading the tracks.";
  const removed = asked.filter(({ isRemoved }) => isRemoved).map(({ query }) => query);
  const rest = removed.length ? `everything but ${removed.join(", ")}` : "the rest";
  const titles = last.stems.map(({ query }) => query ?? rest);
  await showDesk(last, titles, last.stems.map(({ query }) => removed.includes(query)), say, abort.signal);
  element("play").focus();
}

// The address keeps the job, so that a page that is loaded again goes on with it.
function remember(id, asked) {
  const removed = asked.map(({ isRemoved }) => (isRemoved ? 1 : 0)).join("");
  history.replaceState(null, "", id ? `#job=${id}&removed=${removed}` : location.pathname);
}

async function restore() {
  const address = new URLSearchParams(location.hash.slice(1));
  const id = address.get("job");
  if (!id) return;
  let job;
  try {
    job = await getJob(id);
  } catch (error) {
    if (error.status === 404) remember(null, []);
    throw error;
  }
  if (work) return; // something else was asked for meanwhile
  const removed = address.get("removed") ?? "";
  const asked = job.queries.map((query, i) => ({ query, isRemoved: removed[i] === "1" }));
  element("query").value = asked.map(({ query, isRemoved }) => (isRemoved ? `everything but ${query}` : query)).join("\n");
  const abort = new AbortController();
  work = { id, abort };
  showWork(true);
  try {
    await follow(id, asked, abort);
  } finally {
    showWork(false);
    work = null;
  }
}

element("file").onchange = guarded(async () => {
  const [file] = element("file").files;
  if (file) await take(file);
});

const drop = element("drop");
drop.ondragover = (event) => {
  event.preventDefault();
  drop.classList.add("over");
};
drop.ondragleave = () => drop.classList.remove("over");
drop.ondrop = guarded(async (event) => {
  drop.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) await take(file);
});

// A file that misses the field must not take the place of the page.
for (const kind of ["dragover", "drop"]) {
  addEventListener(kind, (event) => {
    if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
  });
}

element("record").onclick = guarded(async () => {
  const button = element("record");
  if (stopRecording) {
    const stop = stopRecording;
    stopRecording = null;
    button.textContent = "Record";
    button.setAttribute("aria-pressed", "false");
    await take(await stop());
    return;
  }
  if (isAskingForMicrophone) return; // a second stream would never be stopped
  isAskingForMicrophone = true;
  try {
    stopRecording = await startRecording();
  } catch (error) {
    throw new Error(`The microphone cannot be used (${error.message}): allow it in the browser.`);
  } finally {
    isAskingForMicrophone = false;
  }
  button.textContent = "Stop recording";
  button.setAttribute("aria-pressed", "true");
});

element("example").onclick = guarded(async () => {
  const content = await (await fetch(EXAMPLE)).blob();
  await take(new File([content], "example.flac", { type: "audio/flac" }));
  element("query").value = "dog barking\nrain";
  await separate(recording, ["dog barking", "rain"]);
});

element("ask-form").onsubmit = guarded(async () => {
  if (!recording) throw new Error("There is no recording yet: choose a file, record one, or try the example.");
  const lines = element("query").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!lines.length) throw new Error("The query is empty: say in a few words what to separate.");
  await separate(recording, lines);
});

element("cancel").onclick = guarded(async () => {
  if (!work) return;
  const { id, abort } = work;
  abort.abort();
  remember(null, []);
  if (id) await deleteJob(id);
});

element("key-form").onsubmit = guarded(async () => {
  useKey(element("key").value);
  await checkKey();
  await restore();
});

guarded(async () => {
  await checkKey();
  await restore();
})();
